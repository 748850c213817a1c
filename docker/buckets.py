"""Make the buckets named on the command line where they are missing."""

import sys

import boto3
from botocore.exceptions import ClientError


def main() -> None:
    """The store is the one that AWS_ENDPOINT_URL names."""
    store = boto3.client("s3")
    there = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    for name in sys.argv[1:]:
        if name in there:
            continue
        try:
            store.create_bucket(Bucket=name)
        except ClientError as error:
            sys.exit(f"the bucket {name} could not be made: {error}")
        print(f"made the bucket {name}")


if __name__ == "__main__":
    main()
