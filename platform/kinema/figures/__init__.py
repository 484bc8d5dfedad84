"""Pictures and tables of results. Nothing here touches matplotlib's global state."""
