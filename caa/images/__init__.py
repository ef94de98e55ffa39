"""Pod VM images that are built here: what the ledger knows of them, building, writing back, and the service's part."""
