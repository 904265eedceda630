"""The commands of `marl-kl`, one module each: `add_...(commands)` describes a command and binds what runs it."""
