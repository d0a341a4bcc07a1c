"""What programs see: nodes, handles, versions, names, lists, locks, earlier versions."""
