"""The commands, one module each: `run` is the command, its docstring the help. Modules load when they are asked for."""
