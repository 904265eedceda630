"""Runs on disk: the folder of one (`run_folder`), its tables (`run_tables`), its `checkpoints`, and the way back to
numbers (`stored_runs`)."""
