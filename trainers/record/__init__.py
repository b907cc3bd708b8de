"""What a run leaves behind: metrics, checkpoints, summary, pictures; and how a terminal shows it."""
# resource: nothing but the folder
