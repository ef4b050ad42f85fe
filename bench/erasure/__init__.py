"""What others wait while somebody is erased."""
