"""What the site and the user have settled: two files, read strictly."""
