"""Memoization: keys made of content, a store on disk, one computation for all who ask."""
