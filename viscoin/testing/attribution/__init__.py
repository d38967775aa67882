"""Are heatmaps true? Scores of maps on scenes whose causes are known, and on any images."""
