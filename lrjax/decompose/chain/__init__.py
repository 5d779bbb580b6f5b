"""What tensor trains and tensor rings share: a train is the ring whose first rank is one."""
