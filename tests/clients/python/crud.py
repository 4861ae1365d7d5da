"""HubSpot's own Python client, pointed at the gateway: contact CRUD, search, batch and paging, until enough tokens have expired.

In: GATEWAY (.../gateway/<connection>), API_KEY, LEDGER (the simulator's), EXPIRIES. Out: one line of JSON.
"""

import json
import os
import urllib.request

from hubspot import HubSpot
from hubspot.crm.contacts import (
    BatchInputSimplePublicObjectBatchInput,
    BatchInputSimplePublicObjectBatchInputForCreate,
    BatchInputSimplePublicObjectId,
    BatchReadInputSimplePublicObjectId,
    Filter,
    FilterGroup,
    PublicObjectSearchRequest,
    SimplePublicObjectBatchInput,
    SimplePublicObjectBatchInputForCreate,
    SimplePublicObjectId,
    SimplePublicObjectInput,
    SimplePublicObjectInputForCreate,
)

client = HubSpot(access_token=os.environ["API_KEY"], host=os.environ["GATEWAY"])
contacts = client.crm.contacts
calls = 0
failures = []


def call(what, function, expected=lambda answer: answer is not None):
    global calls
    calls += 1
    try:
        answer = function()
    except Exception as error:  # every failure is the test's to judge
        failures.append(f"{what}: {type(error).__name__} {getattr(error, 'status', '')}")
        return None
    if not expected(answer):
        failures.append(f"{what}: unexpected answer")
    return answer


def one_round(n):
    def email(i):
        return f"python-{n}-{i}@example.com"

    def properties(i):
        return {"email": email(i), "firstname": f"Python {n}", "lastname": str(i)}

    one = call("create", lambda: contacts.basic_api.create(SimplePublicObjectInputForCreate(properties=properties(0))))
    if one is None:
        return
    call("read", lambda: contacts.basic_api.get_by_id(one.id, properties=["email"]), lambda a: a.properties["email"] == email(0))
    call(
        "update",
        lambda: contacts.basic_api.update(one.id, SimplePublicObjectInput(properties={"firstname": "Changed"})),
        lambda a: a.properties["firstname"] == "Changed",
    )
    inputs = [SimplePublicObjectBatchInputForCreate(properties=properties(i), associations=[]) for i in (1, 2)]
    many = call("batch create", lambda: contacts.batch_api.create(BatchInputSimplePublicObjectBatchInputForCreate(inputs=inputs)))
    if many is None:
        return
    ids = [SimplePublicObjectId(id=record.id) for record in many.results]
    call(
        "batch read",
        lambda: contacts.batch_api.read(
            BatchReadInputSimplePublicObjectId(inputs=ids, properties=["email"], properties_with_history=[])
        ),
        lambda a: len(a.results) == 2,
    )
    changed = [SimplePublicObjectBatchInput(id=record.id, properties={"lastname": "Batch"}) for record in many.results]
    call("batch update", lambda: contacts.batch_api.update(BatchInputSimplePublicObjectBatchInput(inputs=changed)))
    search = PublicObjectSearchRequest(
        filter_groups=[FilterGroup(filters=[Filter(property_name="email", operator="EQ", value=email(0))])],
        properties=["email"],
        limit=10,
        sorts=[],
        after="0",
    )
    call("search", lambda: contacts.search_api.do_search(search), lambda a: a.total == 1)
    page = call("page", lambda: contacts.basic_api.get_page(limit=2), lambda a: len(a.results) == 2)
    if page is not None and page.paging is not None:
        call("next page", lambda: contacts.basic_api.get_page(limit=2, after=page.paging.next.after))
    call("batch archive", lambda: contacts.batch_api.archive(BatchInputSimplePublicObjectId(inputs=ids)), lambda a: True)
    call("archive", lambda: contacts.basic_api.archive(one.id), lambda a: True)


def expiries():
    with urllib.request.urlopen(os.environ["LEDGER"]) as answer:
        return json.load(answer)["refreshes_accepted"]


before = expiries()
n = 0
while not failures and expiries() - before < int(os.environ["EXPIRIES"]):
    one_round(n)
    n += 1
print(json.dumps({"calls": calls, "failures": failures, "expiries": expiries() - before}))
