"""`python -m alignment_api.crd > crds/...`"""

import sys

from alignment_api.crd import crd_yaml

if __name__ == "__main__":
    sys.stdout.write(crd_yaml())
