"""S3 stores: what lies below a prefix of a bucket, read and written as files by name."""
