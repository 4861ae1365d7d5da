"""An OAuth 2.0 authorization server that others wrote: Authlib's grants, endpoints and token check, on a small WSGI server.

Authorization code with PKCE, refresh tokens that rotate (single use, where a replay revokes the family, as RFC 9700 says; or
with a grace window; or never), introspection (RFC 7662), revocation (RFC 7009), and an API behind bearer tokens (RFC 6750).
What Authlib leaves to its user, the storage, is `World`. What a wire can do to a request is `authserver_wire`, around all of
it. What was seen is the ledger, the witness of the tests: GET /_control/ledger.

Prints its address as one line of JSON, and ends when its standard input does.
"""

import json
import os
import secrets
import sys
import threading
import time
from urllib.parse import parse_qsl, urlsplit

# Loopback only: the tests speak plain HTTP, which Authlib would refuse.
os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"

from authlib.common.security import generate_token
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749 import (
    AuthorizationCodeMixin,
    AuthorizationServer,
    ClientMixin,
    OAuth2Request,
    ResourceProtector,
    TokenMixin,
    grants,
)
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6749.util import scope_to_list
from authlib.oauth2.rfc6750 import BearerTokenGenerator, BearerTokenValidator
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint

from authserver_wire import Wire, serve

CLIENT_ID = "independent-client"
CLIENT_SECRET = "independent secret: & with = signs"
BOTH_WAYS = ("client_secret_basic", "client_secret_post")


class Client(ClientMixin):
    def get_client_id(self):
        return CLIENT_ID

    def get_default_redirect_uri(self):
        return None

    def get_allowed_scope(self, scope):
        return scope or "things"

    def check_redirect_uri(self, redirect_uri):
        return urlsplit(redirect_uri).path == "/oauth/callback"

    def check_client_secret(self, client_secret):
        return secrets.compare_digest(client_secret, CLIENT_SECRET)

    def check_endpoint_auth_method(self, method, endpoint):
        return method in BOTH_WAYS

    def check_response_type(self, response_type):
        return response_type == "code"

    def check_grant_type(self, grant_type):
        return grant_type in ("authorization_code", "refresh_token")


class Grant:
    """A customer's consent, and all tokens that come of it: a family."""

    def __init__(self, user):
        self.user = user
        self.revoked = False
        # Whether a refresh replaces the refresh token, where the server's setting says so.
        self.rotates = True
        self.refresh_tokens = []


class Token(TokenMixin):
    def __init__(self, world, grant, text, scope, expires_at):
        self.world, self.grant, self.text, self.scope, self.expires_at = world, grant, text, scope, expires_at
        self.issued_at = world.now()
        self.revoked = False

    def check_client(self, client):
        return client.get_client_id() == CLIENT_ID

    def get_scope(self):
        return self.scope

    def get_expires_in(self):
        return self.expires_at - self.issued_at

    def is_expired(self):
        return self.expires_at is not None and self.world.now() >= self.expires_at

    def is_revoked(self):
        return self.revoked or self.grant.revoked

    def get_user(self):
        return self.grant.user

    def get_client(self):
        return self.world.client


class RefreshToken(Token):
    def __init__(self, *parts):
        super().__init__(*parts)
        self.successor = None
        self.superseded_at = None

    def is_revoked(self):
        return super().is_revoked() or not self.world.may_be_presented(self)


class Code(AuthorizationCodeMixin):
    def __init__(self, request):
        data = request.payload.data
        self.user, self.redirect_uri, self.scope = request.user, request.payload.redirect_uri, request.payload.scope
        self.code_challenge, self.code_challenge_method = data.get("code_challenge"), data.get("code_challenge_method")

    def get_redirect_uri(self):
        return self.redirect_uri

    def get_scope(self):
        return self.scope


class World:
    """What is stored. Its lock makes of each token request what a transaction makes of it elsewhere."""

    def __init__(self):
        self.lock = threading.RLock()
        self.settings = {"ttl": 3600, "rotation": "single_use", "grace": 30}
        self.clock_offset = 0
        self.client = Client()
        self.grants, self.codes, self.access_tokens, self.refresh_tokens = {}, {}, {}, {}
        self.families_revoked = 0

    def now(self):
        return time.time() + self.clock_offset

    def may_be_presented(self, token):
        if token.successor is None:
            return True
        # Grace is for the token before the present one only, as long as that was not used.
        graceful = self.settings["rotation"] == "grace" and token.successor.successor is None
        return graceful and self.now() <= token.superseded_at + self.settings["grace"]

    def new_grant(self, user):
        """A consent takes the place of an earlier one."""
        if user in self.grants:
            self.grants[user].revoked = True
        grant = Grant(user)
        self.grants[user] = grant
        return grant

    def save(self, token, grant):
        scope, ends = token.get("scope"), self.now() + self.settings["ttl"]
        self.access_tokens[token["access_token"]] = Token(self, grant, token["access_token"], scope, ends)
        if "refresh_token" not in token:
            return None
        new = RefreshToken(self, grant, token["refresh_token"], scope, None)
        self.refresh_tokens[new.text] = new
        grant.refresh_tokens.append(new)
        return new

    def revoke_family(self, grant):
        if not grant.revoked:
            grant.revoked = True
            self.families_revoked += 1

    def expire_access_tokens(self, user):
        for token in self.access_tokens.values():
            if user in (None, token.grant.user):
                token.expires_at = 0


class Request(OAuth2Request):
    def __init__(self, environ):
        headers = {name[5:].replace("_", "-").title(): value for name, value in environ.items() if name.startswith("HTTP_")}
        uri = f"http://{environ['HTTP_HOST']}{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        super().__init__(environ["REQUEST_METHOD"], uri, headers=headers)
        self._args = dict(parse_qsl(environ["QUERY_STRING"]))
        self._form = dict(parse_qsl(environ["evergrant.body"].decode()))
        self.payload = BasicOAuth2Payload({**self._args, **self._form})

    @property
    def args(self):
        return self._args

    @property
    def form(self):
        return self._form


class AuthorizationCodeGrant(grants.AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = list(BOTH_WAYS)

    def save_authorization_code(self, code, request):
        self.server.world.codes[code] = Code(request)

    def query_authorization_code(self, code, client):
        return self.server.world.codes.get(code)

    def delete_authorization_code(self, authorization_code):
        codes = self.server.world.codes
        self.server.world.codes = {text: code for text, code in codes.items() if code is not authorization_code}

    def authenticate_user(self, authorization_code):
        return authorization_code.user


class RefreshTokenGrant(grants.RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = list(BOTH_WAYS)

    @property
    def INCLUDE_NEW_REFRESH_TOKEN(self):
        return self.server.world.settings["rotation"] != "never" and self.request.refresh_token.grant.rotates

    def authenticate_refresh_token(self, refresh_token):
        world = self.server.world
        token = world.refresh_tokens.get(refresh_token)
        if token is None or token.grant.revoked:
            return None
        if not world.may_be_presented(token):
            # RFC 9700 §4.14.2: nobody can tell the thief from the owner.
            world.revoke_family(token.grant)
            return None
        return token

    def authenticate_user(self, refresh_token):
        return refresh_token.get_user()

    def revoke_old_credential(self, refresh_token):
        """The successor was saved just before."""
        newest = refresh_token.grant.refresh_tokens[-1]
        if newest is not refresh_token:
            refresh_token.successor = newest
            refresh_token.superseded_at = refresh_token.superseded_at or self.server.world.now()


class Introspection(IntrospectionEndpoint):
    CLIENT_AUTH_METHODS = list(BOTH_WAYS)

    def query_token(self, token_string, token_type_hint):
        return find(self.server.world, token_string)

    def check_permission(self, token, client, request):
        return token.check_client(client)

    def introspect_token(self, token):
        return {"sub": token.get_user(), "scope": token.get_scope(), "client_id": CLIENT_ID}


class Revocation(RevocationEndpoint):
    CLIENT_AUTH_METHODS = list(BOTH_WAYS)

    def query_token(self, token_string, token_type_hint):
        return find(self.server.world, token_string)

    def revoke_token(self, token, request):
        if isinstance(token, RefreshToken):
            self.server.world.revoke_family(token.grant)
        else:
            token.revoked = True


def find(world, text):
    return world.refresh_tokens.get(text) or world.access_tokens.get(text)


class Server(AuthorizationServer):
    def __init__(self, world):
        super().__init__()
        self.world = world
        tokens = BearerTokenGenerator(
            lambda **_: generate_token(42), lambda **_: generate_token(48), lambda *_: world.settings["ttl"]
        )
        self.register_token_generator("default", tokens)
        self.register_grant(AuthorizationCodeGrant, [CodeChallenge(required=True)])
        self.register_grant(RefreshTokenGrant)
        self.register_endpoint(Introspection)
        self.register_endpoint(Revocation)

    def query_client(self, client_id):
        return self.world.client if client_id == CLIENT_ID else None

    def save_token(self, token, request):
        old = request.refresh_token
        self.world.save(token, old.grant if old else self.world.new_grant(request.user))

    def create_oauth2_request(self, request):
        return request if isinstance(request, OAuth2Request) else Request(request)

    def handle_response(self, status, body, headers):
        body = json.dumps(body) if isinstance(body, dict) else body or ""
        return status, headers, body.encode()

    def send_signal(self, name, *args, **kwargs):
        pass


class Bearer(BearerTokenValidator):
    def __init__(self, world):
        super().__init__()
        self.world = world

    def authenticate_token(self, token_string):
        return self.world.access_tokens.get(token_string)


class App:
    """The WSGI application: what an authorization server and an API answer where nothing goes wrong."""

    def __init__(self, world):
        self.world = world
        self.server = Server(world)
        self.api = ResourceProtector()
        self.api.register_token_validator(Bearer(world))

    def __call__(self, environ, start_response):
        with self.world.lock:
            status, headers, body = self.answer(environ)
        start_response(f"{status} .", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    def answer(self, environ):
        path = environ["PATH_INFO"]
        if path == "/token":
            return self.server.create_token_response(environ)
        if path == "/introspect":
            return self.server.create_endpoint_response("introspection", environ)
        if path == "/revoke":
            return self.server.create_endpoint_response("revocation", environ)
        if path == "/authorize":
            return self.authorize(Request(environ))
        if path.startswith("/api/"):
            return self.call(Request(environ))
        return 404, [], b""

    def authorize(self, request):
        """The customer is logged in, says the query, and consents to everything."""
        user = request.args["user"]
        try:
            grant = self.server.get_consent_grant(request, end_user=user)
        except OAuth2Error as error:
            return self.server.handle_error_response(request, error)
        return self.server.create_authorization_response(request, grant_user=user, grant=grant)

    def call(self, request):
        try:
            token = self.api.validate_request(["things"], request)
        except OAuth2Error as error:
            return self.server.handle_error_response(request, error)
        body = {"user": token.get_user(), "scopes": scope_to_list(token.get_scope())}
        return self.server.handle_response(200, body, [("Content-Type", "application/json")])

    def issue(self, user):
        """A grant as it is after consent, without the way there."""
        grant = self.world.new_grant(user)
        token = self.server.generate_token("authorization_code", self.world.client, user=user, scope="things")
        self.world.save(token, grant)
        return token


if __name__ == "__main__":
    app = App(World())
    address = serve(Wire(app))
    print(json.dumps({"url": address, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}), flush=True)
    sys.stdin.read()
