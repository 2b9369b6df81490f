"""What is replaced before anything is written to storage, and what only looks like it."""

from __future__ import annotations

import time

import pytest

from training.config import DataConfig
from training.dataset import prepare, to_jsonl
from training.mail.secrets import IBAN_LENGTHS, redact
from training.schemas import Mail

# Invented, and built from pieces so that no scanner of repositories takes them for leaked keys.
SLACK = "xoxb-" + "17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy"
GITHUB = "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"
JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N"
AWS_SECRET = "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY1"
PUTTY = "PuTTY-User-Key-File-3: ssh-rsa\nComment: x\nPrivate-Lines: 1\nAAAA\nPrivate-MAC: 0a1b"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"the bot uses {SLACK} here", "the bot uses [API key] here"),
        (f"push with {GITHUB}, please", "push with [API key], please"),
        (f"send {JWT} along", "send [API key] along"),
        (f"aws_secret_access_key = {AWS_SECRET}", "aws_secret_access_key = [API key]"),
        ('"client_secret": "0123456789abcdef0123"', '"client_secret": "[API key]"'),
        (f"here it is\n{PUTTY}\nthanks", "here it is\n[private key]\nthanks"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNza", "[private key]"),
        ("pw: Sommer", "pw: [password]"),
        ("PW is hunter2", "PW is [password]"),
        ("the pass-word is B00t!", "the pass-word is [password]"),
        ("use password hunter22 there", "use password [password] there"),
        ("Password # 724088", "Password # [password]"),
        ("Password | Sommer24", "Password | [password]"),
        ("mot de passe\xa0: soleil", "mot de passe\xa0: [password]"),
        ("La contraseña es Verano24", "La contraseña es [password]"),
        ("Das Kennwort lautet Winter#1", "Das Kennwort lautet [password]"),
        ('"password": "abc def"', '"password": [password]'),
        ("login: anna / Sommer24 for the portal", "login: anna / [password] for the portal"),
        ("dial in, code: 350955. Bye", "dial in, code: [code]. Bye"),
        ("paste this code:\n\nWE6IGWDU6BWPM", "paste this code:\n\n[code]"),
        ("482 913 is your login code", "[code] is your login code"),
        ("G-482913 is your Google verification code", "[code] is your Google verification code"),
        ("Ihr Code lautet 482913", "Ihr Code lautet [code]"),
        ("Pin#:\n888-9833", "Pin#:\n[code]"),
        ("page me, pin #2168163.", "page me, pin #[code]."),
        ("cvv 123", "cvv [code]"),
        ("amex 3782 822463 10005 ok", "amex [card number] ok"),
        ("card 5555.5555.5555.4444 ok", "card [card number] ok"),
        ("iban de89 3704 0044 0532 0130 00 thanks", "iban [account number] thanks"),
        ("IBAN GB82-WEST-1234-5698-7654-32.", "IBAN [account number]."),
        ("NL91ABNA0417164300 und mehr", "[account number] und mehr"),
        ("postgres://anna:geheim@db.example/mail", "[link]"),
        ("www.x.example/reset?token=abcd1234efgh", "[link]"),
        ("https://x.example/invite/aB3dE9xK2", "[link]"),
        ("https://hooks.slack.com/services/T000/B000/XXXX", "[link]"),
        ("https://x.example/s/3f2b8c1e-4d5a-4b6c-8d7e-9f0a1b2c3d4e", "[link]"),
        ("API key abcdef1234567890abcdef12 works", "API key [API key] works"),
        ("key: 9f8a7b6c5d4e3f2a1b0c", "key: [API key]"),
        ("the key is 9f8a7b6c5d4e3f2a1b0c.", "the key is [API key]."),
        ("your temporary pass: Zx9!kk", "your temporary pass: [password]"),
        ("user: bob\npass = hunter2", "user: bob\npass = [password]"),
        ("my pin 4321, ok?", "my pin [code], ok?"),
        ("the pin is 4321", "the pin is [code]"),
        ("the wifi password is summer", "the wifi password is [password]"),
        ("Password was summer, not winter", "Password was [password], not winter"),
        ("the password is summer and the door is open", "the password is [password] and the door is open"),
        ("Das Passwort lautet sommer", "Das Passwort lautet [password]"),
        ("user\nbob\npassword\nhunter2\nthanks", "user\nbob\npassword\n[password]\nthanks"),
        ("the password\nPassword: summer", "the password\nPassword: [password]"),
        ("My login at the yard - it is bob / hunter2!", "My login at the yard - it is bob / [password]"),
        ("his number is 219-09-9998, keep it", "his number is [ID number], keep it"),
        ("pay 20-00-00 55779911 please", "pay [account number] please"),
        ("20-00-00, account no. 55779911", "[account number]"),
        ("Password: correct horse battery staple", "Password: [password]"),
        ("pw: correct horse battery, bye", "pw: [password], bye"),
        # A word of letters and digits in the sentence of a password, whatever stands between.
        (
            "The password for the shared drive is harbour22.",
            "The password for the shared drive is [password].",
        ),
        ("password is still harbour22", "password is still [password]"),
        ("I set the password as harbour22 now", "I set the password as [password] now"),
        ("Try Marmalade9 as the password", "Try [password] as the password"),
        ("harbour22 is the wifi password", "[password] is the wifi password"),
        ("le mot de passe, c'est mouette22", "le mot de passe, c'est [password]"),
        (
            "the password " + "of it " * 12 + "is Seagull22harbour9 now",  # it goes past the window
            "the password " + "of it " * 12 + "is [password] now",
        ),
        # One word, found from both sides.
        ("the password Harbour22 is the wifi password", "the password [password] is the wifi password"),
        ("Senha provisória: gaivota22", "Senha provisória: [password]"),
        ("Das Gastpasswort ist jetzt Moewe22", "Das Gastpasswort ist jetzt [password]"),
        ("my wifi password is:\nharbour22 as always", "my wifi password is:\n[password] as always"),
        ("The password for the zip is oysterpie.", "The password for the zip is [password]"),
        ("*Password:* harbour22", "*Password:* [password]"),
        ("**Password:** oysterpie", "**Password:** [password]"),
        ("Password (case sensitive): KingFisher", "Password (case sensitive): [password]"),
        ("wifi key: seagulls", "wifi key: [password]"),
        ("WLAN-Schlüssel: Moewe22", "WLAN-Schlüssel: [password]"),
        ("p/w: harbour", "p/w: [password]"),
        ("ww: Zeil#123", "ww: [password]"),
        ("密码是 haiou2024", "密码是 [password]"),
        ("wifi: GullGuest / seagull-2023", "wifi: GullGuest / [password]"),
        ("creds are admin:s3cr3tsauce", "creds are admin:[password]"),
        ("The code for the gate is 4711", "The code for the gate is [code]"),
        ("the code is #4711", "the code is #[code]"),
        ("your code will be 482913.", "your code will be [code]."),
        ("it just sent me a code, 482913", "it just sent me a code, [code]"),
        ("use 482913 to log in", "use [code] to log in"),
        ("482913 is your Amazon OTP", "[code] is your Amazon OTP"),
        ("Deine mTAN: 482913", "Deine mTAN: [code]"),
        ("Der Türcode ist 4711", "Der Türcode ist [code]"),
        ("PIN für die Karte ist 4711", "PIN für die Karte ist [code]"),
        ("toegangscode: 4711", "toegangscode: [code]"),
        ("Backup codes: 4821-9930, 7710-2284", "Backup codes: [code]"),
        ("4539 1488 0343 6467 04/27", "[card number] 04/27"),
        ("4539 1488 0343 6467 2 nights", "[card number] 2 nights"),
        ("card no.4539148803436467", "card no.[card number]"),
        ("it is 4539 1488\n0343 6467", "it is [card number]"),
        ("IBAN DE89 3704 0044\n0532 0130 00", "IBAN [account number]"),
        ("Account number: 4482193377", "Account number: [account number]"),
        ("routing 021000021", "routing [account number]"),
        ("the key for Office is XK7FD-93HTR-QW2PM-8VB6C-4JYNT", "the key for Office is [API key]"),
        ("the secret that goes with it is " + AWS_SECRET, "the secret that goes with it is [API key]"),
        ("redis://:geheim@cache.x.example/0", "[link]"),
        ("https://chat.whatsapp.com/Ab12Cd34", "[link]"),
        ("passphrase = Correct Horse Battery Staple.\nBest", "passphrase = [password].\nBest"),
    ],
)
def test_a_secret_is_replaced(text: str, redacted: str) -> None:
    found = redact(text)
    assert found.text == redacted
    assert found.count == 1


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (
            "sort code 20-00-00, account 55779911",
            "sort code [account number], account [account number]",
        ),
        (
            "Sort code: 200000\nAccount no: 55779911",
            "Sort code: [account number]\nAccount no: [account number]",
        ),
        ("a/c 5577 9911 (sort-code 20 00 00)", "a/c [account number] (sort-code [account number])"),
    ],
)
def test_a_sort_code_and_its_account_are_replaced_both(text: str, redacted: str) -> None:
    assert redact(text).text == redacted
    assert redact(text).count == 2


@pytest.mark.parametrize(
    "text",
    [
        "the password protected file, the password-reset page and my passwords",
        "upload it upward (pwc did) by 1997",
        "Terry Tang is holding on 65584, urgent",
        "TANF reg. Cynthia 62846, in Tangipahoa in 1994",
        "zip code: 77046, area code 713, see Code #6603",
        "the code is ready for review",
        "the secret of the token ring is 12 years old",
        "spin: 2026 was 1997",
        "order 4111 1111 1111 1112, ticket 1234567812345670",  # wrong check digit; no issuer begins with 1
        "XX82 WEST 1234 5698 7654 32 and GB82 WEST 1234 5698 7654 33",  # no country; wrong check digits
        "https://x.example/2026/05/3-ways-to-cook-a-pot-of-beans-in-40-minutes",
        "https://x.example/login and www.x.example/confirm/",
        "call 1-877-795-3687 or +44 20 7946 0958 before 10:30 on 2026-03-04",
        "user: anna / bob",
        "the password is required, the password is too long, my password was rejected.",
        "The password is wrong.",
        "the password is summer themed",
        "I lost the password\nagain, and the 2nd one",
        "boarding pass: BA1234, pass: 12 fail: 3, let it pass: fine, a pass = good",
        "the key is that 2001 was early, and the key: patience",
        "key dates 2001-09-11, token amount 1234567890123456",
        "the pins 4321 and pinned 2001, a pin drop in 2001",
        "sort the code 200000 by account 55779911",
        "on 10-12-01 we had 55779911 hits, 2001-10-12 55779911, account 55779911",
        "the login page is up and / or down, my login is bob / anna",
        "call 000-12-3456, 666-12-3456, 912-12-3456, 123-00-4567, 123-45-0000 or 1-219-09-9998",
        "She got her MFA in 2019, and 2FA is planned for 2025",
        "a tan leather sofa for 1200 euros, and Ms Tan comes at 1430",
        "Participant numbers rose to 1200, door number 1204",
        "the code is 20000 lines, error code: 50012, product code is 48213, colour code 40213",
        "the code of conduct is on page 1200",
        "The password manager is 1Password.",
        "set passwords to 16-character ones, passwords to LinkedIn and Facebook",
        "The rent pw is £450, and the password is 100% wrong",
        "Password: see below. Passwort: siehe unten. La clave: paciencia.",
        "Password: please ask Bob for it, Password: will be sent by post",
        "A word on passwords: please stop writing them down. The password: it expires in June",
        "Zum Passwort: das läuft im Juni ab. Mots de passe : pensez à les changer",
        "The password is rubbish, and the password reset for Office365 is slow",
        "the course code is MATH2301, customer code 104482, De klantcode is 482913",
        "2FA is active for 1200 users, activation keys for 1500 seats",
        "I'd use 25000 as the upper limit and enter 12000 as the mileage",
        "The conference number is 01632 960500",
        "The users are parents/care-givers in most cases.",
        "https://x.example/books?author=smith",
        "order 219-09-99981, part 219-09-9998-A, 219.09.9998 and 219 09 9998",
    ],
)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    assert redact(text).text == text
    assert redact(text).count == 0


def test_iban_lengths_are_those_of_known_examples() -> None:
    examples = ("DE89370400440532013000", "FR1420041010050500013M02606", "NO9386011117947")
    assert all(IBAN_LENGTHS[example[:2]] == len(example) for example in examples)
    assert len(IBAN_LENGTHS) > 75


BAITS = {
    "begins of keys": "-----BEGIN RSA PRIVATE KEY-----\n" * 30_000,
    "begins of PuTTY keys": "PuTTY-User-Key-File-2 " * 45_000,
    "passwords": "password is " * 80_000,
    "password pairs": "pw pwd pass " * 80_000,
    "codes": "code: code is " * 70_000,
    "one long word": "a1" * 500_000,
    "one long number": "4" * 1_000_000,
    "blanks": "password" + " " * 1_000_000 + ": x 1234 5678",
    "IBAN beginnings": "DE89 " * 200_000,
    "one URL": "https://x.example/" + "a-" * 500_000,
    "URLs": "http://a/?token=" * 60_000,
    "equal signs": "http://" + "=a1" * 300_000,
    "JWT beginnings": "eyJ" * 330_000,
    "slashes": "login: a/" * 100_000,
    "logins": "login is user are " * 60_000,
    "phrases": "password: " + "ab " * 300_000,
    "many phrases": "password: ab cd ef gh " * 45_000,
    "passwords below": "password\n\n" * 100_000,
    "passes": "my pass: \npass: a" * 60_000,
    "keys": "key token is secret 1a" * 45_000 + " " + "a1" * 20,
    "SSN beginnings": "219-09-" * 140_000,
    "sort pairs": "20-00-00 account " * 60_000,
    "sort codes": "sort code 20-00-00 account " * 40_000,
    "pins": "my pin code " * 80_000 + "1",
    "chosen words": "password harbour22 " * 50_000,
    "words as passwords": "a1b2c3 as the password " * 40_000,
    "cards": "4539 1488 0343 6467 " * 50_000,
    "cards on lines": "4539\n" * 200_000,
    "compound codes": "türcode " * 120_000 + "1",
    "codes for gates": "code for the gate " * 55_000 + "1",
    "near keys": "key " * 200_000 + "aB1" * 40,
    "accounts": "account no. 1234567 " * 50_000,
    "licences": "XK7FD-" * 160_000,
}


@pytest.mark.parametrize("bait", BAITS)
def test_a_million_hostile_characters_cost_little(bait: str) -> None:
    started = time.process_time()
    redact(BAITS[bait])
    # 0.02–0.5 s of processor time each; a quadratic pattern would take minutes.
    assert time.process_time() - started < 5


def test_nothing_secret_reaches_the_data_set() -> None:
    """Own words, the answered message and the subject (which becomes the instruction) alike."""
    topics = ("budget", "garden", "server", "holiday", "contract", "kitchen", "printer", "seminar", "museum")
    mails = [
        Mail(
            id=f"m{n}",
            thread_id=f"t{n}",
            position=n,
            subject=f"Re: {topic}, pw: Geheim{n}7",
            body_text=f"Dear Tom, the {topic} is ready and waits, but the password is Geheim{n}7 until the "
            f"{topics[n - 1]} people change it again.",
            answered_text=f"What about the {topic}? Mine was password: Geheim{n}7, is that still right?",
            is_reply=True,
        )
        for n, topic in enumerate(topics)
    ]
    prepared = prepare(mails, DataConfig(min_usable=10, min_words=4, held_out_fraction=0.2))
    written = to_jsonl([*prepared.train, *prepared.held_out])
    assert len(prepared.train) + len(prepared.held_out) == len(mails)
    assert "Geheim" not in written
    assert written.count("[password]") == 3 * len(mails)
