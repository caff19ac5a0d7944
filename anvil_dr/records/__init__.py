"""What must survive a reboot: the state database, its journal, and a spare copy of it."""
