"""What travels between a process worker and its parent. Standard library only: a child loads it at start."""
