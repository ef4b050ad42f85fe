"""What every domain room needs: callers, faults, ids, text, time."""
