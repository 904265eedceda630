"""Runs and sweeps on disk: their folder and record (`run_folder`), `checkpoints` of `shards`, tables (`run_tables`), and
reading them back (`stored_runs`, `stored_sweeps`, `loading`)."""
