"""EC2 on this machine: moto in a process of its own, behind one lock, with its gaps closed."""
