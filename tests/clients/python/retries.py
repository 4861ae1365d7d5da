"""HubSpot's own Python client with retries on: one job that creates a company, twice, as a queue that lost its answer does.

In: GATEWAY (.../gateway/<connection>), API_KEY, NAME, HEADERS (JSON). Out: one line of JSON.
"""

import json
import os

from hubspot import HubSpot
from hubspot.crm.companies import SimplePublicObjectInputForCreate
from urllib3 import Retry

retry = Retry(total=3, backoff_factor=0.01, status_forcelist=[500, 502, 503, 504], allowed_methods=None)
client = HubSpot(access_token=os.environ["API_KEY"], host=os.environ["GATEWAY"], retry=retry)


def job():
    company = SimplePublicObjectInputForCreate(properties={"name": os.environ["NAME"]}, associations=[])
    try:
        made = client.crm.companies.basic_api.create(company, _headers=json.loads(os.environ["HEADERS"]))
        return {"id": made.id}
    except Exception as error:  # every failure is the test's to judge
        headers = getattr(error, "headers", None) or {}
        return {"code": getattr(error, "status", 0), "error": headers.get("Evergrant-Error", type(error).__name__)}


print(json.dumps([job(), job()]))
