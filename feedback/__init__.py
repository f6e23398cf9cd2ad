"""The ledger: everything the circle remembers. The only room that opens Redis."""
