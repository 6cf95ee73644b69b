"""What byte models are judged by: tasks, their scores, and the suite that runs them."""
