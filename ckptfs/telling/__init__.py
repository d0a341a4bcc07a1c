"""What happened, and who is told: events, alarms, counts."""
