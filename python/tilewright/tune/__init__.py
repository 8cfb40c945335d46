"""``tilewright tune``: launch configurations, measured on the user's GPU. Nothing else measures them."""
