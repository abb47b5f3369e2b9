"""What happens over time: training, evaluation, weights, reports."""
