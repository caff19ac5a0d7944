"""The same day played on throw-away copies, and what came of it."""
