"""sosfs: a bucket of Exoscale Simple Object Storage, or of any S3 store, as a drive."""

__version__ = "0.1.0"
