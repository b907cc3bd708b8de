"""The child process: its life, its envs, the rows that it writes. Imports neither asyncio nor torch."""
# resource (child): nothing but the folder
