"""The words of the built-in suite. {slot} is filled from SLOTS, # is a digit, @ is where the core goes."""

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

SUPPORT = {
    "payment": [
        "my payment of ${amount} was taken twice",
        "the payment for {month} is ${amount}, which is too much",
        "please refund my payment of ${amount}",
        "my payment for the {plan} was declined",
        "I need a receipt for my payment of ${amount} in {month}",
        "the discount is missing from my ${amount} payment",
    ],
    "error": [
        "I get error {code} when I {action}",
        "the {app} shows error {code} on my {device}",
        "error {code} comes up since the update on {day}",
        "the {app} crashes with an error when I {action}",
        "there is an error in the {app}, it freezes on my {device}",
        "error {code} stops the {app} on my {device}",
    ],
    "delivery": [
        "the delivery of my {item} is late",
        "the delivery with my {item} went to the wrong address",
        "can the delivery of the {item} come on {day} instead?",
        "my {item} was crushed in the delivery on {day}",
        "when is the delivery of the {item} I ordered in {month}?",
        "the {item} is missing from my delivery",
    ],
    "account": [
        "I forgot the password of my account",
        "please change the email of my account to {email}",
        "I have been locked out of my account since {day}",
        "please close my account {email} by {day}",
        "how do I add {name} to my account?",
        "please change the name on my account to {name} {surname}",
        "I cannot log in to my account {email}",
    ],
}

INCIDENTS = {
    "minor": [
        "there is a minor typo on the {page} page",
        "the icon on the {page} page has a slightly wrong color",
        "a minor text on the {page} page is out of date",
        "the layout of the {page} page is slightly off",
        "the {system} has a minor typo in one of its emails",
        "a minor icon of the {system} is missing",
    ],
    "critical": [
        "the {system} is down for all users in {city}",
        "nobody in {city} can use the {system}, all work has stopped",
        "all payments fail and the {system} is down",
        "the {system} is down and losing all data",
        "the {system} is down in {city}, everybody is waiting",
        "the {system} has been hacked, all customers are affected",
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
        "turn on the lights in the {room}",
        "switch off all lights in the {room}",
        "dim the {room} lights to {percent} percent",
        "make the lights in the {room} {color}",
        "the {room} is too dark, more light please",
    ],
    "heating": [
        "set the {room} heating to {degrees} degrees",
        "it is too cold in the {room}, turn up the heating",
        "turn the heating in the {room} down",
        "heat the {room} to {degrees} degrees by {hour}",
        "switch the heating off in the {room} at {hour}",
    ],
    "music": [
        "play some {genre} music in the {room}",
        "put on my {genre} music",
        "turn the music in the {room} up",
        "stop the {genre} music",
        "play {genre} music until {hour}",
    ],
    "alarm": [
        "set an alarm for {hour} on {day}",
        "set my alarm for {hour}",
        "cancel my {hour} alarm on {day}",
        "move the alarm on {day} to {hour}",
        "delete the alarm for {day}",
    ],
    "shopping": [
        "put {food} on the shopping list",
        "add {food} and {food} to the shopping list",
        "take {food} off my shopping list",
        "show me the shopping list for {day}",
        "start a new shopping list with {food}",
    ],
}

ORDERS = [
    "{hello}where is order @? I paid ${amount} for it in {month}.",
    "{hello}I ordered a {item} for ${amount} and the order number is @.",
    "{hello}order @ has not arrived, please call me at {hour}.",
    "{hello}please cancel @, I ordered the {item} on {day} by mistake.",
    "{hello}my order @ from {month} 2# is missing a {item}.",
    "{hello}the {item} from order @ is broken. I want my ${amount} back.",
    "{hello}can you send @ to ## Mill Street in {city} instead?",
    "{hello}I have waited for {period}. The order is @. I paid ${amount}.",
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
    "support_frame": ["{hello}@.", "{hello}@.{thanks}"],
    "incident_frame": [
        "@.", "{name} reports: @.", "since {hour}: @.", "ticket from {city}: @.", "note from {city}: @.",
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
    "invoice": ["@", "{name}: @", "{city}: @", "{day}, {city}: @", "{name} {surname}: @"],
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
