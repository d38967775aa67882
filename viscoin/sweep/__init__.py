"""Sweeps: many trainings by recipes that Optuna chooses, in one study that several processes may work on."""
