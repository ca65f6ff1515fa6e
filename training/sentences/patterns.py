"""The patterns that made sentences follow; `{slot}` names words or an amount."""

from typing import Final

PATTERNS: Final = tuple(
    """
No.
Yes.
Maybe.
Certainly.
Of course not.
Thank you very much.
You are welcome.
I beg your pardon?
Good evening, {name}.
Good afternoon, {title} {family}.
Goodbye, {name}, and take care.
Happy birthday, {name}!
Nice to meet you, {name}.
How are you {sometime}?
See you on {day}.
What a {kind} {object}!
What a {kind} idea!
How {kind}!
Never {do} that again!
Hurry up, {name}!
Look, {name}, the {object} is {kind}.
Help yourself to the {objects}.
{person} was {feeling}.
I am {feeling}.
I am not {feeling}, only {kind}.
Are you {feeling}?
Why are you so {feeling}?
{person} is {feeling} {sometime}.
{person} {did} the {object}.
{person} {did} {person} {somewhere}.
{name} {did} a {kind} {object} {somewhere}.
{name} {family} {did} {some} {objects} {sometime}.
{sometime}, {person} {did} the {objects}.
{somewhere} there was a {kind} {object}.
The {objects} {somewhere} were {kind} and {kind}.
The {kind} {objects} are {somewhere}.
There are {few} {objects} {somewhere}, and all of them are {kind}.
We {did} {few} {objects}, {few} {objects} and a {object}.
They {did} it {sometime}, didn't they?
She {did} neither the {object} nor the {objects}.
He said nothing, {did} his {object}, and went home.
I think that {person} {did} the {object}, but nobody believes me.
I wonder whether {name} will {do} the {object} {sometime}.
It seems that {person} is {feeling}.
It is {kind} to {do} a {object} {sometime}.
It was so {kind} that {person} {did} everything.
If you {do} the {object}, {person} will be {feeling}.
Unless we {do} the {objects}, nothing will change.
Although the {object} was {kind}, {name} {did} it.
When {person} came back, the {object} was gone.
Before you {do} anything, ask {person}.
Because of {matter}, {person} was {feeling}.
{name} knows everything about {matter}.
{matter}: that is what {person} talks about {sometime}.
Nothing is as {kind} as {matter}.
The more I read about {matter}, the less I understand.
Some people like {matter}; others prefer {matter}.
What do you know about {matter}?
Did you hear what {person} said about {matter}?
Have you ever {did} a {kind} {object}?
Who {did} the {object} {somewhere}?
Where did {name} {do} the {objects}?
When did {person} {do} it?
How often do you {do} your {object}?
How much does the {object} cost?
Which {object} did you {do}, the {kind} one or the {kind} one?
Would you mind if I {did} the {object}?
Could {name} {do} it {sometime}?
Shall we {do} the {objects} {sometime}?
Can I {do} something for you?
Is there a {object} {somewhere}?
Isn't it {kind}?
Please {do} the {kind} {object} {somewhere}.
Please don't {do} the {objects}.
Let me {do} that for you, {name}.
You should {do} it {sometime}.
You must not {do} the {object}, even if it is {kind}.
To {do} the {object}, first {do} the {objects}, then wait for {few} minutes.
Here is a list: {objects}, {objects}, {objects}, and {objects}.
I can {do} it, {do} it, or {do} it.
My {object} is {kind}, yours is {kind}, and theirs is {kind}.
"I am {feeling}," said {person}.
"Did you {do} the {object}?" asked {name}.
"{do} it!" shouted {person}. "Now!"
{name} (the {kind} one) {did} the {object}.
{title} {family} lives {somewhere} in {town}.
{title} {family} and {title} {family} met in {town} on {date}.
{name} moved from {town} to {town} in {year}.
I will be in {town} on {date}.
My appointment is on {day} at {time}.
The concert begins at {time}, so be there at {time}.
It is {time} in {town}.
We open at {time} on {day} and close at {time}.
The war ended in {year}.
Since {year}, {person} has {did} {large} {objects}.
In {year} there were {large} {objects} in {town}.
The population of {town} is {large}.
This {object} costs {money}.
{name} owes me {money}.
The {objects} cost {money} each, or {money} for {few}.
Your bill is {money}, {name}.
{share} of the {objects} are {kind}.
Prices fell by {share} in {year}.
Only {share} of people {did} the {object}.
The average is {decimal}.
It took {decimal} seconds to {do} {lots} {objects}.
The {object} weighs {measure}.
It is {measure} {somewhere}.
Turn right after {measure}.
This is the {nth} {object} that {person} {did}.
{name} came {nth} out of {some}.
The {nth} of the {objects} is {kind}.
{some} and {few} make more than {few}.
I need {lots} {objects} by {date}.
Please wait {few} minutes.
Your number is {code}.
The password is {code}, I repeat, {code}.
Call {phone} after {time}.
Dial {phone} to reach {title} {family}.
Our address is {lots} {family} Road, {town}.
Visit {site} to learn more about {matter}.
Write to {site} before {date}.
Take bus {some} to {town}; it leaves at {time}.
Flight {lots} to {town} is delayed until {time}.
Page {lots}, line {some}.
Chapter {few}: {person} and the {kind} {object}.
The answer is {number}.
The sum of {number} and {number} is {number}.
There are {number} {objects} and {number} {objects} {somewhere}.
{number} {objects}, please.
{person} counted {number} {objects} {sometime}.
Between {number} and {number} {objects} were {kind}.
More than {number} guests came to {town}, and {number} of them stayed.
Of {number} {objects}, only {number} are {kind}.
Your order, number {number}, will arrive on {date}.
The score was {some} to {few}.
Ticket {number}, room {lots}, floor {few}.
It was {minus} degrees {sometime}, and {minus} at night.
The balance of your account is {minus}.
Tonight {town} expects {minus} degrees.
Keep the {objects} at {minus} degrees, {name}.
From {minus} it climbed to {some} {sometime}.
Between {minus} and {minus} degrees the {objects} break.
The answer is {minus}, not {few}.
Take the lift down to level {minus}.
Growth in {year} was {minus} percent, and {share} in {year}.
{minus} plus {number} makes more than {minus}.
{person} woke up with {minus} degrees {somewhere}.
{worded} {objects} and {worded} {objects} make a {kind} picture.
{name} is {worded} years old, and {person} is {worded}.
At least {worded} {objects} were {somewhere}.
In the {decade}, {matter} mattered more than in the {decade}.
{fraction} of the {objects} and {fraction} of the {objects} are {kind}.
Add {fraction} of a cup, stir for {worded} minutes, and {do} it.
Read pages {some} to {lots} of chapter {few} by {day}.
From {year} to {year}, {name} {family} lived in {town}.
{person} bought it for {money} and sold it for {money}.
With {share} off, the {object} is only {money}.
My code is {code}, and my phone number is {phone}.
The {nth} edition of {year} has {lots} pages.
The next train to {town} is at {time}, the one after that at {time}.
Once upon a time, {person} {did} a {kind} {object}, and {sometime} the {objects} were {kind}.
""".strip().splitlines()
)
