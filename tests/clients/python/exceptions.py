"""What HubSpot's own Python client raises, as people see it: whatever is armed at the simulator meets one call each.

In: BASE (the simulator), TOKEN (one that is good), CALLS (how many). Out: one line of JSON, texts by what was called.
"""

import json
import os
import traceback

from hubspot import HubSpot
from hubspot.crm.contacts import SimplePublicObjectInputForCreate
from urllib3 import Retry


def client(**credentials):
    return HubSpot(host=os.environ["BASE"], retry=Retry(total=0), **credentials)


contacts = client(access_token=os.environ["TOKEN"]).crm.contacts.basic_api
tokens = client().oauth.tokens_api
contact = SimplePublicObjectInputForCreate(properties={"email": "twice@example.com"}, associations=[])
raised = []


def call(function):
    try:
        function()
        raised.append([])
    except Exception as error:  # every failure is the test's to judge
        raised.append([str(error), traceback.format_exc(), json.dumps({"level": "error", "exc_info": traceback.format_exc()})])


def redeem(secret):
    tokens.create(grant_type="refresh_token", client_id="sim-client", client_secret=secret, refresh_token="gone")


for _ in range(int(os.environ["CALLS"])):
    call(lambda: contacts.get_page(limit=1))
contacts.create(contact)
call(lambda: contacts.create(contact))
call(lambda: client(access_token="garbage").crm.contacts.basic_api.get_page(limit=1))
call(lambda: redeem("sim-secret"))
call(lambda: redeem("wrong"))
print(json.dumps(raised))
