"""The page at `/`: what a worker node runs, for people. Read-only, and whole without the internet."""
