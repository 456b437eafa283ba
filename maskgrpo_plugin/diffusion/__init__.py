"""The mathematics of masked diffusion RL: schedules, remasking, likelihood and samplers, on torch alone."""
