"""One package per cloud. `base` is the contract; `registry` finds and loads the one that is configured."""
