"""From a disk to an image of a cloud: one publisher for each cloud."""
