"""The words of the built-in suite. {slot} is filled from SLOTS, # is a digit, @ is where the core goes."""

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

SUPPORT = {
    "billing": [
        "I was charged twice for the {plan}",
        "the invoice for {month} shows ${amount}, which is too much",
        "please refund the ${amount} I paid for the {plan}",
        "my card was billed ${amount} after I canceled the {plan}",
        "why did the price of the {plan} go up to ${amount}?",
        "I need a tax receipt for my ${amount} payment in {month}",
        "the discount was not taken off the ${amount} on my bill",
        "can I pay the {month} invoice by bank transfer?",
    ],
    "technical": [
        "the {app} crashes every time I {action}",
        "I get error {code} whenever I {action}",
        "the {app} has been frozen since the update on {day}",
        "the {app} does not sync with my {device}",
        "the {app} only shows a blank screen on my {device}",
        "the {app} hangs with error {code} on my {device}",
        "I cannot {action}, the {app} just stops responding",
    ],
    "shipping": [
        "my package with the {item} has not arrived",
        "the tracking page for my {item} has not moved since {day}",
        "the courier left my {item} at the wrong address",
        "the {item} came in a crushed box",
        "can you deliver the {item} on {day} instead?",
        "the driver did not ring on {day} and took the {item} back to the depot",
        "when will the {item} I ordered in {month} be delivered?",
    ],
    "account": [
        "I forgot my password and the reset link has expired",
        "please change the email address on my profile to {email}",
        "I have been locked out of my login since {day}",
        "please close my account and delete my profile by {day}",
        "how do I add {name} as a second user to my profile?",
        "please change the name on my profile to {name} {surname}",
        "the code to sign in as {email} never comes",
        "I want to change my user name to {email}",
    ],
}

INCIDENTS = {
    "low": [
        "there is a typo on the {page} page",
        "the icon on the {page} page has the wrong color",
        "the footer of the {page} page still shows the old year",
        "{name} asks for a nicer layout of the {page} page",
        "the {system} writes a harmless warning to its log",
        "the text on the {page} page is not centered",
        "the help text of the {system} is out of date",
    ],
    "medium": [
        "the {system} is slow for some users in {city}",
        "a few users in {city} see errors in the {system}, but a retry works",
        "one of two nodes of the {system} is down, the other one copes",
        "the nightly report of the {system} is late for the team in {city}",
        "search in the {system} takes a few seconds longer for some users",
        "some emails from the {system} arrive an hour late in {city}",
    ],
    "high": [
        "the {system} is down for all users",
        "nobody in {city} can reach the {system}, all work has stopped",
        "customer data of the {system} is visible to strangers",
        "all payments fail and the {system} is offline",
        "the database of the {system} is losing data right now",
        "attackers have got into the {system} in {city}",
        "the server room in {city} is on fire",
    ],
}

REVIEWS = {
    "positive": [
        "I love this {product}, it {works_well}",
        "best {product} I have ever owned, it {works_well}",
        "the {product} {works_well} and I would buy it again",
        "very happy with the {product}, even after {period} it {works_well}",
        "my {relative} adores the {product}, it {works_well}",
        "worth every cent, the {product} {works_well}",
    ],
    "negative": [
        "I regret buying this {product}, it {works_badly}",
        "worst {product} I have ever owned, it {works_badly}",
        "the {product} {works_badly} and I sent it back",
        "very disappointed with the {product}, after {period} it {works_badly}",
        "my {relative} hates the {product}, it {works_badly}",
        "a waste of money, the {product} {works_badly}",
    ],
}

HOME = {
    "lights": [
        "turn on the lamp in the {room}",
        "switch off all lights in the {room}",
        "dim the {room} lamp to {percent} percent",
        "make the {room} a bit brighter",
        "make the lights in the {room} {color}",
    ],
    "heating": [
        "set the {room} to {degrees} degrees",
        "it is too cold in the {room}, warm it up",
        "turn the radiator in the {room} down",
        "heat the {room} to {degrees} degrees by {hour}",
        "lower the temperature in the {room}",
    ],
    "music": [
        "play some {genre} in the {room}",
        "put on my {genre} playlist",
        "skip this {genre} song",
        "turn the volume up to {percent} in the {room}",
        "play the latest {genre} album in the {room}",
    ],
    "alarm": [
        "wake me up at {hour} on {day}",
        "set an alarm for {hour}",
        "cancel my alarm on {day}",
        "wake me {percent} minutes later on {day}",
        "set a wake-up alarm for {hour} in the {room}",
    ],
    "shopping": [
        "put {food} on the shopping list",
        "add {food} and {food} to my groceries",
        "we need to buy more {food}",
        "order {food} from the supermarket for {day}",
        "take {food} off the shopping list",
    ],
}

ORDERS = [
    "{hello}where is order @? I paid ${amount} for it in {month}.",
    "{hello}I ordered a {item} for ${amount} and the order number is @.",
    "{hello}order @ has not arrived, please call me on 555-####.",
    "{hello}please cancel @, I ordered the {item} on {day} by mistake.",
    "{hello}my order @ from {month} 2# is missing a {item}.",
    "{hello}the {item} from order @ is broken. I want my ${amount} back.",
    "{hello}can you send @ to ## Mill Street in {city} instead?",
    "{hello}I have waited for {period}. The order is @. My phone is 555-####.",
    "{hello}about @: the {item} should have cost ${amount}.",
    "{hello}this is {name} {surname}, I would like to return order @.",
]

SLOTS = {
    "hello": [
        "", "hi, ", "hello, ", "good morning, ", "hi team, ", "dear support, ", "hey, ",
        "sorry to bother you, ",
    ],
    "thanks": [
        "", " Thanks, {name}.", " Please help.", " Can you look into this today?", " Regards, {name}.",
        " I have been a customer since 201#.", " This is the second time I write.",
    ],
    "support_frame": [
        "{hello}@.{thanks}", "@.{thanks}", "{hello}@, what now?",
        "{hello}I did not find this in the FAQ: @.",
    ],
    "incident_frame": [
        "@.", "{name} reports: @.", "since {hour}: @.", "ticket ####: @.", "note from {city}: @.",
        "{name} called at {hour}, @.", "{day} {hour}, @.",
    ],
    "review_frame": [
        "@.", "bought it in {month}: @.", "{delivery} @.", "@. {delivery}", "I chose it for the color. @.",
        "paid ${amount} for it: @.",
    ],
    "home_frame": [
        "@", "please @", "hey, @", "{name} wants you to do this: @", "could you please do this: @",
        "@, please", "okay house, @", "@ right now",
    ],
    "dated": [
        "The {item} will be delivered on @.", "{name} {surname} joined the team on @.",
        "Invoice #### is due on @.", "Our lease in {city} ends on @.", "Meeting with {name} moved to @.",
        "Signed in {city} on @ by {name}.", "The warranty of the {item} runs until @.",
        "{name} is on leave from @.", "Payment of ${amount} received on @.",
    ],
    "contact": [
        "Please call @ about the {item}.", "Our contact in {city} is @.",
        "@ from {city} asked for a quote.", "The invoice goes to @, room ##.",
        "@ will pick up the {item} on {day}.", "Meeting on {day} with @ in {city}.",
        "Signed by @ in {month}.", "@ paid ${amount} in {month}.",
    ],
    "invoice": [
        "@", "{name}: @", "Table ##: @", "Order ###: @", "{day}, {city}: @", "To {name} {surname}: @",
    ],
    "letters": [
        "AB", "BK", "CX", "DL", "EF", "GT", "HK", "KX", "LM", "MR", "NP", "PZ", "QA", "RT", "SV", "TX",
        "VW",
    ],
    "amount": ["#", "##", "##.50", "##.99", "###", "###.50"],
    "code": ["4##", "5##", "E##", "E###", "0x##"],
    "plan": [
        "basic plan", "team plan", "yearly plan", "premium plan", "monthly plan", "family plan", "trial",
    ],
    "app": [
        "app", "web shop", "editor", "dashboard", "desktop program", "calendar", "photo viewer",
        "chat window",
    ],
    "action": [
        "open a file", "print a page", "upload a picture", "export a table", "search for a name",
        "start a video call", "save a draft", "switch to dark mode",
    ],
    "device": ["phone", "laptop", "tablet", "old computer", "work computer", "watch", "television"],
    "item": [
        "lamp", "desk", "kettle", "backpack", "blue jacket", "keyboard", "coffee grinder", "tent",
        "mirror", "bookshelf", "headset", "wool blanket", "suitcase", "bike helmet", "garden chair",
        "toaster",
    ],
    "email": ["{name}@mail.com", "{name}.{surname}@work.org", "{surname}##@post.net"],
    "page": ["start", "contact", "help", "team", "price", "career", "news", "privacy", "login", "product"],
    "system": [
        "web shop", "payment service", "booking system", "mail server", "intranet", "warehouse system",
        "customer portal", "phone system", "payroll system", "ticket system",
    ],
    "product": [
        "kettle", "vacuum cleaner", "blender", "lamp", "pan", "mattress", "fan", "toaster", "speaker",
        "office chair", "razor", "heater", "camera", "backpack", "coffee machine", "iron",
    ],
    "works_well": [
        "works perfectly", "looks beautiful and runs quietly", "is easy to clean",
        "does its job very well", "feels solid and well made", "saves me a lot of time", "is a joy to use",
        "still looks like new",
    ],
    "works_badly": [
        "stopped working", "is loud and smells of plastic", "is impossible to clean", "broke at once",
        "feels cheap and flimsy", "is a pain to use", "leaks and rattles", "does not do its job",
    ],
    "period": ["two days", "three days", "a week", "two weeks", "a month", "three months", "half a year"],
    "relative": ["mother", "father", "sister", "brother", "wife", "husband", "son", "daughter", "neighbor"],
    "delivery": [
        "It came on {day}.", "Delivery took {period}.", "It was packed in a plain box.",
        "I chose the black one.", "It replaced our old one.",
    ],
    "room": [
        "kitchen", "bedroom", "living room", "bathroom", "hall", "office", "garage", "guest room",
        "cellar",
    ],
    "percent": ["10", "15", "20", "30", "40", "50", "60", "70", "80"],
    "color": ["red", "blue", "green", "orange", "purple", "warm white"],
    "degrees": ["17", "18", "19", "20", "21", "22", "23", "24"],
    "genre": ["jazz", "rock", "classical", "folk", "pop", "soul", "blues", "reggae", "techno"],
    "food": [
        "milk", "bread", "eggs", "butter", "rice", "apples", "coffee", "cheese", "onions", "flour",
        "tomatoes",
    ],
    "goods": [
        "coffee", "tea", "bagel", "soup", "salad", "juice", "muffin", "sandwich", "pen", "notebook",
        "stamp", "candle", "card", "mug", "soap", "apple", "cookie", "water", "pie", "towel",
    ],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "month": list(MONTHS),
    "hour": [
        "6:15", "6:30", "7:00", "7:45", "8:20", "9:00", "9:30", "10:10", "11:40", "half past six", "noon",
    ],
    "city": [
        "Berlin", "Leeds", "Porto", "Austin", "Lyon", "Oslo", "Denver", "Turin", "Ghent", "Boston", "Cork",
    ],
    "name": [
        "Anna", "Ben", "Carla", "David", "Elena", "Frank", "Grace", "Hugo", "Irene", "James", "Karen",
        "Leo", "Maria", "Nora", "Oscar", "Paula", "Quinn", "Rosa", "Simon", "Tara", "Victor", "Wendy",
    ],
    "surname": [
        "Adams", "Baker", "Costa", "Dixon", "Evans", "Fischer", "Garcia", "Hansen", "Ivanov", "Jones",
        "Keller", "Lopez", "Meyer", "Nolan", "Okafor", "Patel", "Rossi", "Silva", "Turner", "Weber",
    ],
}  # fmt: skip
