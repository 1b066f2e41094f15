"""What training needs of a dataset beyond LeRobot's own loader."""
