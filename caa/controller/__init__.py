"""The controller of a cluster: KataConfig objects, the nodes they choose, and what runs there. An extra of its own."""
