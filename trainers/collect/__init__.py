"""From envs to rollouts."""
# async: nothing but the folder
