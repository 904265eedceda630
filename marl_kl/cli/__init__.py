"""The commands of `marl-kl`: `add_...(commands)` adds a command's parser and the function that runs it."""
