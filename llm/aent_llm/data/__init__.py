"""Problems, answers and rewards: what a model is asked, and whether it is right."""
