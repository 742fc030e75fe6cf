"""Training: recipe, loop, checkpoint, losses, schedule, average of the weights."""
