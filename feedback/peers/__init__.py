"""What neighbours of Heed write when they export feedback, one file for each of them."""
