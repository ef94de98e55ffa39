"""The part of Azure that images need: managed disks that are uploaded to, their page blobs, and galleries."""
