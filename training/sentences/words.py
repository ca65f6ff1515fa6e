"""The words that made sentences are filled with, by the name of the slot."""

from collections.abc import Mapping
from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(" ".join(word.split()) for word in text.split(","))


WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "name": _words("""
        Alice, Arthur, Beatrice, Charles, Clara, Daniel, Diana, Edward, Eleanor, Fiona, George,
        Gloria, Harriet, Hugo, Irene, James, Joanna, Joseph, Kate, Leonard, Linda, Louise, Marcus,
        Margaret, Martin, Miriam, Nathan, Nora, Owen, Patricia, Paul, Philip, Rebecca, Robert,
        Rosa, Simon, Sophie, Stephen, Teresa, Thomas, Ursula, Vincent, Walter, William, Yvonne,
        Zachary"""),
    "family": _words("""
        Abbott, Barnes, Bennett, Chapman, Cooper, Dawson, Ellis, Fletcher, Foster, Gibson,
        Griffin, Harper, Hughes, Jenkins, Jordan, Knight, Lawson, Marshall, Mason, Newton,
        Osborne, Palmer, Porter, Quigley, Reynolds, Russell, Shaw, Spencer, Stone, Thornton,
        Vaughan, Watts, York"""),
    "town": _words("""
        Bristol, Oxford, Glasgow, Cardiff, Belfast, Leeds, Brighton, Montreal, Ottawa,
        Philadelphia, Portland, Dallas, Phoenix, Memphis, Atlanta, Detroit, Barcelona, Munich,
        Zurich, Prague, Warsaw, Stockholm, Helsinki, Istanbul, Moscow, Beijing, Shanghai, Bangkok,
        Jakarta, Lima, Buenos Aires, Mexico City, Melbourne, Auckland, Jerusalem, Hong Kong, New
        Orleans"""),
    "object": _words("""
        basket, bell, bottle, bowl, brush, bucket, button, calendar, carpet, chair, clock, coat,
        compass, computer, cup, curtain, desk, diary, dictionary, drawer, envelope, fence, flag,
        flute, fork, glass, guitar, hat, helmet, kettle, knife, lamp, letter, magazine,
        microphone, newspaper, painting, pencil, phone, photograph, piano, pillow, plate, pocket,
        radio, ring, rope, scarf, shelf, shirt, shovel, spoon, statue, stove, table, television,
        tent, ticket, towel, toy, tray, trumpet, vase, wallet, watch, wheel, whistle"""),
    "objects": _words("""
        accounts, answers, artists, bags, bananas, bells, bridges, buildings, candles, chapters,
        clouds, coins, computers, cousins, dogs, doors, errors, flowers, forests, friends, games,
        girls, guests, hours, jobs, judges, keys, lessons, machines, minutes, mountains, nurses,
        oranges, paintings, passengers, pictures, plants, potatoes, rivers, roads, rooms, rules,
        sailors, seats, shoes, soldiers, stories, streets, teachers, towns, villages, windows,
        witches, words, workers, years"""),
    "kind": _words("""
        angry, awful, beautiful, blue, boring, calm, cheap, clean, clear, cold, comfortable,
        common, crowded, dangerous, dark, deep, difficult, dry, early, easy, empty, enormous,
        familiar, fast, foreign, formal, full, funny, generous, green, happy, healthy, honest,
        huge, hungry, important, interesting, lazy, light, little, lonely, loud, lovely, lucky,
        necessary, new, nice, odd, ordinary, patient, peaceful, plain, pleasant, poor, popular,
        private, proud, pure, purple, rare, ready, rich, round, sad, safe, secret, serious, sharp,
        short, shy, silent, silly, slow, smart, soft, special, square, steep, strong, stupid,
        sweet, tall, terrible, thin, tiny, tired, ugly, unusual, useless, usual, valuable, weak,
        wet, white, wide, wild, worried, young"""),
    "do": _words("""
        accept, admire, break, bring, build, burn, buy, catch, change, cook, count, cover, cut,
        decorate, destroy, discover, draw, drop, enjoy, examine, finish, fix, forget, give, hang,
        hold, invent, keep, lift, lose, lower, mention, need, notice, offer, order, pack, pick,
        pull, push, raise, reach, recognise, recommend, remove, rent, request, rescue, select,
        sell, shake, show, steal, study, support, teach, test, throw, touch, translate, trust,
        turn, use, visit, wash, wear, weigh, wrap"""),
    "did": _words("""
        admired, blamed, borrowed, bought, brought, built, caught, chased, chose, cleaned,
        counted, described, drew, dropped, examined, expected, fetched, finished, forgot, found,
        hated, heard, helped, ignored, imagined, invited, joined, kicked, knew, left, liked, lost,
        loved, made, missed, moved, needed, opened, ordered, pushed, read, remembered, saw, sold,
        stole, taught, thanked, threw, took, trusted, understood, used, wanted, warned, washed,
        watched, wrote"""),
    "somewhere": _words("""
        above the door, across the field, after the bridge, along the coast, around the corner, at
        the end of the road, at school, at the theatre, behind the curtain, below the surface,
        beside the fire, between two trees, beyond the hills, by the sea, down the hall, in a
        small box, in my pocket, in the attic, in the cellar, in the middle of the room, in the
        north of the country, inside the castle, near the church, next to the bakery, on a high
        shelf, on the roof, on the left, on the other side, opposite the museum, outside the city,
        over the wall, through the tunnel, under the table, upstairs, up the hill"""),
    "sometime": _words("""
        a week ago, all day long, almost every day, around noon, as soon as possible, at dawn, at
        midnight, at the moment, before sunrise, by the end of the month, during the night,
        earlier today, every other week, for a long time, for the first time, from time to time,
        in a minute, in an hour, in the autumn, in the meantime, in the morning, last summer, last
        winter, later tonight, many years ago, next year, now and then, on my birthday, once, one
        evening, sooner or later, the day after tomorrow, this afternoon, this month, twice a day,
        until the very end, while it was raining"""),
    "matter": _words("""
        a good night's sleep, the price of bread, foreign languages, the future of work, her
        garden, his first job, artificial intelligence, long walks, clean water, the moon and the
        stars, modern art, old films, our neighbours, the power of habit, public transport,
        quantum physics, renewable energy, the rules of chess, sailing, simple cooking, the news,
        their wedding, the theory of evolution, the truth, traffic, vegetables, wild animals,
        world peace, your question, the winter holidays, classical music, the latest software
        update, bees"""),
    "person": _words("""
        the actor, the baker, a stranger, the captain, my aunt, her brother, the child, a
        colleague, our cook, the dentist, the driver, the farmer, his father, the gardener, my
        grandmother, the journalist, the judge, the king, the lawyer, the librarian, the manager,
        the mayor, their mother, the musician, the neighbour, a nurse, the old man, the painter,
        the pilot, the poet, a policeman, the president, the queen, the scientist, her sister, the
        student, our teacher, the thief, my uncle, the waiter, the writer, a young woman"""),
    "feeling": _words("""
        afraid, alone, amused, annoyed, ashamed, asleep, at home, awake, bored, busy, certain,
        curious, delighted, disappointed, excited, free, glad, grateful, ill, in a hurry, in love,
        late, nervous, relieved, right, satisfied, sorry, sure, surprised, thirsty, upset, well,
        wrong"""),
}
