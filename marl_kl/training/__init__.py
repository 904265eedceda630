"""`train` (`runner`) and `sweep` (`sweeper`): both train shards in the same loop (`shard_loop`)."""
