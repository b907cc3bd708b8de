"""From rollouts to a better policy: PPO and what it stands on. Imports no env."""
# pure (torch): nothing but the folder
