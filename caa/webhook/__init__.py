"""`caa webhook`: a peer pod gets the size of its VM as annotations, and asks its worker for nothing else."""
