"""The same runtime behind other libraries' interfaces: `adapters.gymnasium.VectorEnv`, `adapters.sb3.VecEnv`."""
# the door: nothing is imported until it is used
