"""How fast and how late: offered load → the same worker → percentiles → report."""
